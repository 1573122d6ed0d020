{{/* What every pod of the chart has alike. */}}

{{/* Annotations of a pod, beside checksums. Takes root and values (of the component). */}}
{{- define "forebay.podAnnotations" -}}
{{- if .root.Values.mesh.linkerd.enabled }}
linkerd.io/inject: enabled
config.beta.linkerd.io/proxy-enable-native-sidecar: "true"
config.linkerd.io/skip-inbound-ports: "9090"
{{- end }}
{{- with .values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where and as whom a pod runs. Takes root, values (of the component), selector (text, to spread by; none: no
     spreading), account (name), and user where the image needs another. */}}
{{- define "forebay.podPlace" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- $user := empty .user | ternary dict (dict "runAsUser" .user "runAsGroup" .user) }}
  {{- mustMergeOverwrite (deepCopy .root.Values.podSecurityContext) $user (deepCopy .values.podSecurityContext) | toYaml | nindent 2 }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else if .selector }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $.selector | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A container's security context. Takes root and values (of the component). */}}
{{- define "forebay.containerSecurity" -}}
{{- mustMergeOverwrite (deepCopy .root.Values.securityContext) (deepCopy .values.securityContext) | toYaml -}}
{{- end -}}

{{/* Environment from a map of names and texts, in a steady order. */}}
{{- define "forebay.env" -}}
{{- range $name := keys . | sortAlpha }}
- name: {{ $name }}
  value: {{ get $ $name | quote }}
{{- end }}
{{- end -}}

{{/* What a pod needs to talk to the API server, as the volume `kubernetes`. Takes the seconds that a token is good for. */}}
{{- define "forebay.kubernetesVolume" -}}
- name: kubernetes
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: {{ . }}
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end -}}
