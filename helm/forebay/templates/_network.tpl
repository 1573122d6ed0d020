{{/* What the NetworkPolicies are made of, beside selectors. */}}

{{/* Ports at which the issuer of tokens is asked; prints a JSON list. */}}
{{- define "forebay.issuerPorts" -}}
{{- $ports := list -}}
{{- if .Values.gateway.oidc.issuer -}}
{{- range $url := compact (list .Values.gateway.oidc.issuer .Values.gateway.oidc.jwksUri) -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (urlParse $url).host | trimPrefix ":" | default "443" | int) -}}
{{- end -}}
{{- end -}}
{{- uniq $ports | toJson -}}
{{- end -}}

{{/* Values that have the gateway ask something outside of the release whose place the chart does not know; prints a JSON
     list. */}}
{{- define "forebay.outside" -}}
{{- $found := list -}}
{{- if eq .Values.database.type "postgresql" }}{{ $found = append $found "database.postgresql" }}{{ end -}}
{{- if not .Values.redis.enabled }}{{ $found = append $found "redis.external" }}{{ end -}}
{{- if .Values.gateway.extraUpstreams }}{{ $found = append $found "gateway.extraUpstreams" }}{{ end -}}
{{- range $name := list "moderation" "semanticCache" "tracing" -}}
{{- if (get $.Values.gateway $name).url }}{{ $found = append $found (printf "gateway.%s.url" $name) }}{{ end -}}
{{- end -}}
{{- if .Values.mesh.linkerd.enabled }}{{ $found = append $found "mesh.linkerd" }}{{ end -}}
{{- toJson $found -}}
{{- end -}}
