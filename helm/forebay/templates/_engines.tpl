{{/* How each engine is told what to serve: arguments and environment of its container. */}}

{{/* Forebay's own engine. Takes model and timeouts. */}}
{{- define "forebay.transformersProgram" -}}
{{- $model := .model -}}
{{- $source := include "forebay.modelSource" $model -}}
{{- $env := dict
  "FOREBAY_HOST" "0.0.0.0"
  "FOREBAY_HOME" "/var/lib/forebay"
  "FOREBAY_MODEL" (printf "%s=%s%s" $model.name $source (empty $model.revision | ternary "" (printf "@%s" $model.revision)))
  "FOREBAY_MAX_BATCH" (toString $model.maxBatch)
  "FOREBAY_MAX_QUEUE" (toString $model.maxQueue)
  "FOREBAY_REQUEST_TIMEOUT" (toString .timeouts.engine)
  "FOREBAY_SHUTDOWN_GRACE" (toString .timeouts.drain)
  "HF_HOME" "/var/lib/forebay/hub"
-}}
{{- if $model.contextLength }}{{ $_ := set $env "FOREBAY_CONTEXT_LENGTH" (int $model.contextLength | toString) }}{{ end -}}
{{- if ne $model.quantization "none" }}{{ $_ := set $env "FOREBAY_QUANTIZATION" $model.quantization }}{{ end -}}
{{- if $model.hub.offline }}{{ $_ := set $env "FOREBAY_HUB_OFFLINE" "true" }}{{ $_ := set $env "HF_HUB_OFFLINE" "1" }}{{ end -}}
{{- if $model.hub.existingSecret }}{{ $_ := set $env "HF_TOKEN_PATH" "/run/secrets/hub/token" }}{{ end -}}
{{- if $model.adapters -}}
{{- $adapters := list -}}
{{- range $name, $from := $model.adapters }}{{ $adapters = append $adapters (printf "%s:%s=%s" $model.name $name $from) }}{{ end -}}
{{- $_ := set $env "FOREBAY_ADAPTERS" (join "," $adapters) -}}
{{- end -}}
{{- $ranks := include "forebay.tensorParallelSize" $model | int -}}
{{- if gt $ranks 1 -}}
command:
  - torchrun
  - --standalone
  - --nproc-per-node={{ $ranks }}
  - --shutdown-timeout={{ add .timeouts.drain 5 }}
  - -m
  - services.inference
{{ end -}}
env:
  {{- include "forebay.env" (mustMergeOverwrite $env $model.env) | trim | nindent 2 }}
{{- end -}}

{{/* vLLM, in its own image. Takes a model's values. Caches and home lie on the state volume, as the root is read-only. */}}
{{- define "forebay.vllmProgram" -}}
{{- $source := include "forebay.modelSource" . -}}
{{- $env := dict
  "HOME" "/var/lib/forebay"
  "HF_HOME" "/var/lib/forebay/hub"
  "VLLM_CACHE_ROOT" "/var/lib/forebay/vllm"
  "VLLM_NO_USAGE_STATS" "1"
-}}
{{- if .hub.offline }}{{ $_ := set $env "HF_HUB_OFFLINE" "1" }}{{ end -}}
{{- if .hub.existingSecret }}{{ $_ := set $env "HF_TOKEN_PATH" "/run/secrets/hub/token" }}{{ end -}}
args:
  - --model={{ $source }}
  {{- with .revision }}
  - --revision={{ . }}
  {{- end }}
  - --served-model-name={{ .name }}
  - --host=0.0.0.0
  - --port=8000
  - --dtype={{ .dtype }}
  {{- with .contextLength }}
  - --max-model-len={{ int . }}
  {{- end }}
  {{- if ne .quantization "none" }}
  - --quantization={{ .quantization }}
  {{- end }}
  - --tensor-parallel-size={{ include "forebay.tensorParallelSize" . }}
  - --max-num-seqs={{ int .maxBatch }}
  {{- range .vllm.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  {{- include "forebay.env" (mustMergeOverwrite $env .env) | trim | nindent 2 }}
{{- end -}}
