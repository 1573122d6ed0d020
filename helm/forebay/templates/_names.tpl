{{/* What things are called, and by which labels they are found. */}}

{{/* Prefix of every name. 32 characters leave room for `-model-`, a model's key and a suffix below the 63 of a Service;
     a longer one ends in a piece of its hash, so that two long ones stay apart. */}}
{{- define "forebay.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := .Values.fullnameOverride | default (contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart)) -}}
{{- include "forebay.cut" (dict "name" $name "length" 32) -}}
{{- end -}}

{{/* A name cut at `length`, told apart by its hash when something was cut. */}}
{{- define "forebay.cut" -}}
{{- if gt (len .name) (int .length) -}}
{{- printf "%s-%s" (.name | trunc (int (sub .length 7)) | trimSuffix "-") (sha256sum .name | trunc 6) -}}
{{- else -}}
{{- .name | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of a model's Deployment. Takes root and key. Leaves room for `-metrics`. */}}
{{- define "forebay.modelName" -}}
{{- include "forebay.cut" (dict "name" (printf "%s-model-%s" (include "forebay.fullname" .root) .key) "length" 55) -}}
{{- end -}}

{{/* What a selector holds. Takes root and component, and model for one model's pods. */}}
{{- define "forebay.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .model }}
forebay.dev/model: {{ . }}
{{- end }}
{{- end -}}

{{/* All labels of an object. Takes the same as the selector. */}}
{{- define "forebay.labels" -}}
{{ include "forebay.selector" . }}
app.kubernetes.io/part-of: forebay
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of a pod: those that do not change with the chart's version, which would start pods anew for nothing. */}}
{{- define "forebay.podLabels" -}}
{{ include "forebay.selector" . }}
app.kubernetes.io/part-of: forebay
{{- end -}}

{{/* An image's reference. Takes root and image. */}}
{{- define "forebay.image" -}}
{{- $image := .image -}}
{{- $registry := default .root.Values.global.image.registry $image.registry -}}
{{- $name := empty $registry | ternary $image.repository (printf "%s/%s" (trimSuffix "/" $registry) $image.repository) -}}
{{- $tag := printf "%s%s" (default .root.Chart.AppVersion $image.tag) (default "" $image.tagSuffix) -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name $tag -}}
{{- end -}}
{{- end -}}

{{/* Name of the account that pods of a component run under. Takes name (its own) and account (its values). */}}
{{- define "forebay.serviceAccountName" -}}
{{- .account.create | ternary .name (default "default" .account.name) -}}
{{- end -}}

{{/* Name of the Secret with what the gateway signs and hashes with. */}}
{{- define "forebay.secretName" -}}
{{- .Values.secrets.existingSecret | default (printf "%s-secrets" (include "forebay.fullname" .)) -}}
{{- end -}}

{{/* Name of the claim that SQLite's file lies on; empty for an emptyDir. */}}
{{- define "forebay.databaseClaim" -}}
{{- $sqlite := .Values.database.sqlite -}}
{{- $sqlite.existingClaim | default (empty $sqlite.size | ternary "" (printf "%s-database" (include "forebay.fullname" .))) -}}
{{- end -}}
