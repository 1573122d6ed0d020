{{/* The ladder of time-outs, in seconds, as YAML. Each step that is not set follows from `timeouts.request`; a ladder that
     does not increase fails with a sentence. */}}
{{- define "forebay.timeouts" -}}
{{- $set := .Values.timeouts -}}
{{- $request := int $set.request -}}
{{- $engine := $set.engine | default $request | int -}}
{{- $proxy := $set.proxy | default (add $request 10) | int -}}
{{- $drain := $set.drain | default (add $request 5) | int -}}
{{- $preStop := int $set.preStop -}}
{{- $termination := $set.termination | default (add $preStop $drain 10) | int -}}
{{- if gt $engine $request -}}
{{- fail (printf "timeouts.engine (%d s) is above timeouts.request (%d s): pods would go on computing answers that the gateway has given up. Lower engine or raise request." $engine $request) -}}
{{- end -}}
{{- if le $proxy $request -}}
{{- fail (printf "timeouts.proxy (%d s) must be above timeouts.request (%d s), or the proxy cuts requests before the gateway can answer 504. Raise proxy or leave it out." $proxy $request) -}}
{{- end -}}
{{- if ge (int $set.connect) $request -}}
{{- fail (printf "timeouts.connect (%d s) must be below timeouts.request (%d s). Lower connect." (int $set.connect) $request) -}}
{{- end -}}
{{- if le $drain $request -}}
{{- fail (printf "timeouts.drain (%d s) must be above timeouts.request (%d s), or a rollout cuts requests that still run. Raise drain or leave it out." $drain $request) -}}
{{- end -}}
{{- /* The five: requests that the drain cuts say so to their clients and are settled (services/gateway/drain.py). */ -}}
{{- if lt $termination (add $preStop $drain 5 | int) -}}
{{- fail (printf "timeouts.termination (%d s) must be 5 s or more above preStop and drain together (%d s), or Kubernetes kills pods that still drain. Raise termination or leave it out." $termination (add $preStop $drain)) -}}
{{- end -}}
{{- dict "request" $request "engine" $engine "proxy" $proxy "drain" $drain "preStop" $preStop "termination" $termination | toYaml -}}
{{- end -}}
