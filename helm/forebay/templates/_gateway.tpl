{{/* The gateway's settings that are no secrets: the ConfigMap's data, and what its checksum is made of. */}}
{{- define "forebay.gatewaySettings" -}}
{{- $timeouts := include "forebay.timeouts" . | fromYaml -}}
FOREBAY_HOST: "0.0.0.0"
FOREBAY_HOME: /var/lib/forebay
FOREBAY_LOG_LEVEL: {{ .Values.gateway.logLevel }}
FOREBAY_GATEWAY_WORKERS: {{ .Values.gateway.workers | quote }}
FOREBAY_GATEWAY_CONNECTIONS: {{ .Values.gateway.connections | quote }}
FOREBAY_UPSTREAMS: {{ include "forebay.upstreams" . | quote }}
FOREBAY_JWT_SECRET_FILE: /run/secrets/forebay/jwt-secret
FOREBAY_KEY_SECRET_FILE: /run/secrets/forebay/key-secret
{{- if eq .Values.database.type "sqlite" }}
FOREBAY_DATABASE_URL: sqlite:////var/lib/forebay/forebay.db
{{- else }}
FOREBAY_DATABASE_URL_FILE: /run/secrets/database/url
{{- end }}
{{- if .Values.redis.enabled }}
FOREBAY_REDIS_URL_FILE: /run/secrets/forebay/redis-url
{{- else if .Values.redis.external.existingSecret }}
FOREBAY_REDIS_URL_FILE: /run/secrets/redis/url
{{- else }}
FOREBAY_REDIS_URL: {{ .Values.redis.external.url | quote }}
{{- end }}
FOREBAY_REQUEST_TIMEOUT: {{ $timeouts.request | quote }}
FOREBAY_DRAIN_DELAY: {{ $timeouts.preStop | quote }}
FOREBAY_SHUTDOWN_GRACE: {{ $timeouts.drain | quote }}
FOREBAY_ACCESS_TOKEN_TTL: {{ .Values.timeouts.session | quote }}
{{ include "forebay.limitSettings" . }}
{{ include "forebay.routingSettings" . }}
{{ include "forebay.recallSettings" . }}
{{ include "forebay.inputSettings" . }}
{{ include "forebay.identitySettings" . }}
FOREBAY_LEDGER_RETENTION_DAYS: {{ .Values.gateway.ledger.retentionDays | int | quote }}
{{- with .Values.gateway.tracing.url }}
FOREBAY_TRACING_URL: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* What the gateway's container and its bootstrap share: settings, security, resources, volumes. */}}
{{- define "forebay.gatewayContainer" -}}
{{- $gateway := .Values.gateway -}}
envFrom:
  - configMapRef:
      name: {{ include "forebay.fullname" . }}-gateway
  {{- with $gateway.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $gateway.env }}
env:
  {{- include "forebay.env" . | trim | nindent 2 }}
{{- end }}
securityContext:
  {{- include "forebay.containerSecurity" (dict "root" . "values" $gateway) | nindent 2 }}
resources:
  {{- toYaml $gateway.resources | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: state
    mountPath: /var/lib/forebay
  - name: secrets
    mountPath: /run/secrets/forebay
    readOnly: true
  {{- if eq .Values.database.type "postgresql" }}
  - name: database
    mountPath: /run/secrets/database
    readOnly: true
  {{- end }}
  {{- if and (not .Values.redis.enabled) .Values.redis.external.existingSecret }}
  - name: redis
    mountPath: /run/secrets/redis
    readOnly: true
  {{- end }}
  {{- range include "forebay.serviceKeys" . | fromJsonArray }}
  - name: {{ .name }}
    mountPath: /run/secrets/{{ .name }}
    readOnly: true
  {{- end }}
{{- end -}}
