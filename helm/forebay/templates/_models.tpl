{{/* A model's values, whole: defaults, then its profile, then its own. Takes root and key; prints YAML. */}}
{{- define "forebay.model" -}}
{{- $own := get .root.Values.models .key | default dict -}}
{{- $profile := $own.profile | default .root.Values.modelDefaults.profile -}}
{{- $of := get .root.Values.resourceProfiles $profile | default dict -}}
{{- $model := mustMergeOverwrite (deepCopy .root.Values.modelDefaults) (deepCopy $of) (deepCopy $own) -}}
{{- $_ := set $model "name" ($model.name | default .key) -}}
{{- toYaml $model -}}
{{- end -}}

{{/* Keys of the models that are not turned off, in a steady order; prints a JSON list. */}}
{{- define "forebay.modelKeys" -}}
{{- $keys := list -}}
{{- range $key := keys .Values.models | sortAlpha -}}
{{- $model := include "forebay.model" (dict "root" $ "key" $key) | fromYaml -}}
{{- if $model.enabled }}{{ $keys = append $keys $key }}{{ end -}}
{{- end -}}
{{- toJson $keys -}}
{{- end -}}

{{/* Where the gateway finds pods: a headless Service of each model, or the slices of all of them, and what is outside. */}}
{{- define "forebay.upstreams" -}}
{{- $urls := list -}}
{{- if include "forebay.watches" . -}}
{{- /* This release's only, and not those that exist for scraping. A comma would end the entry. */ -}}
{{- $selector := printf "app.kubernetes.io/instance=%s,forebay.dev/model,!forebay.dev/scrape" .Release.Name -}}
{{- $urls = append $urls (printf "k8s+http://%s?labelSelector=%s" .Release.Namespace ($selector | replace "," "%2C" | replace "=" "%3D")) -}}
{{- else -}}
{{- range $key := include "forebay.modelKeys" . | fromJsonArray -}}
{{- $urls = append $urls (printf "dns+http://%s-pods:8000" (include "forebay.modelName" (dict "root" $ "key" $key))) -}}
{{- end -}}
{{- end -}}
{{- join "," (concat $urls .Values.gateway.extraUpstreams) -}}
{{- end -}}

{{/* Not empty where the gateway watches Kubernetes for pods. */}}
{{- define "forebay.watches" -}}
{{- if and (eq .Values.gateway.discovery "kubernetes") (include "forebay.modelKeys" . | fromJsonArray) }}true{{ end -}}
{{- end -}}

{{/* Every name that callers may write as `model`, with those of adapters, whether a pod serves it already or not. */}}
{{- define "forebay.expectedModels" -}}
{{- $names := list -}}
{{- range $key := include "forebay.modelKeys" . | fromJsonArray -}}
{{- $model := include "forebay.model" (dict "root" $ "key" $key) | fromYaml -}}
{{- $names = append $names $model.name -}}
{{- range $adapter := keys $model.adapters | sortAlpha }}{{ $names = append $names (printf "%s:%s" $model.name $adapter) }}{{ end -}}
{{- end -}}
{{- join "," (concat $names .Values.gateway.routing.expectedModels | uniq) -}}
{{- end -}}

{{/* GPUs of one pod, MIG slices counted too. Takes a model's values. */}}
{{- define "forebay.gpus" -}}
{{- $count := 0 -}}
{{- range $name, $number := dig "limits" dict .resources -}}
{{- if hasPrefix "nvidia.com/" $name }}{{ $count = add $count (int $number) }}{{ end -}}
{{- end -}}
{{- $count -}}
{{- end -}}

{{/* How many processes share one copy of a model. Takes a model's values. */}}
{{- define "forebay.tensorParallelSize" -}}
{{- .tensorParallelSize | default (max 1 (include "forebay.gpus" . | int)) | int -}}
{{- end -}}

{{/* `surge` or `in-place`. Takes a model's values. */}}
{{- define "forebay.rollout" -}}
{{- if ne .rollout "auto" -}}
{{- .rollout -}}
{{- else if or (gt (include "forebay.gpus" . | int) 0) (and (or .cache.size .cache.existingClaim) (ne .cache.accessMode "ReadWriteMany")) -}}
in-place
{{- else -}}
surge
{{- end -}}
{{- end -}}

{{/* Seconds that a model's pod may take to be ready. Takes a model's values. */}}
{{- define "forebay.startupSeconds" -}}
{{- if .startupSeconds -}}
{{- int .startupSeconds -}}
{{- else if kindIs "invalid" .weightsGiB -}}
600
{{- else -}}
{{- add 120 (mulf 30 .weightsGiB | ceil | int) -}}
{{- end -}}
{{- end -}}

{{/* What the engine opens: a hub id, a folder on a volume, or `bundled`. Takes a model's values. */}}
{{- define "forebay.modelSource" -}}
{{- if hasPrefix "pvc://" .source -}}
{{- $parts := regexSplit "/" (trimPrefix "pvc://" .source) 2 -}}
{{- printf "/models/%s" (len $parts | eq 2 | ternary (last $parts) "") | trimSuffix "/" -}}
{{- else -}}
{{- .source -}}
{{- end -}}
{{- end -}}

{{/* Name of the claim behind a `pvc://` source; empty for others. Takes a model's values. */}}
{{- define "forebay.sourceClaim" -}}
{{- if hasPrefix "pvc://" .source }}{{ trimPrefix "pvc://" .source | splitList "/" | first }}{{ end -}}
{{- end -}}

{{/* Name of the claim that downloads are kept on; empty for an emptyDir. Takes name (of the Deployment) and model. */}}
{{- define "forebay.cacheClaim" -}}
{{- .model.cache.existingClaim | default (empty .model.cache.size | ternary "" (printf "%s-cache" .name)) -}}
{{- end -}}
