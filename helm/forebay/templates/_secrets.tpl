{{/* The pod that fills in the Secret: apart from the Job, whose name is made of its hash. */}}
{{- define "forebay.secretsPod" -}}
{{- $gateway := .Values.gateway -}}
{{- $keys := .Values.secrets.keys -}}
metadata:
  labels:
    {{- include "forebay.podLabels" (dict "root" . "component" "secrets") | nindent 4 }}
  annotations:
    checksum/script: {{ .Files.Get "files/make_secrets.py" | sha256sum }}
    {{- if .Values.mesh.linkerd.enabled }}
    linkerd.io/inject: disabled
    {{- end }}
spec:
  {{- $place := pick $gateway "nodeSelector" "tolerations" "podSecurityContext" "priorityClassName" }}
  {{- include "forebay.podPlace" (dict "root" . "values" $place "account" (printf "%s-secrets" (include "forebay.fullname" .))) | nindent 2 }}
  restartPolicy: OnFailure
  containers:
    - name: make-secrets
      image: {{ include "forebay.image" (dict "root" . "image" $gateway.image) }}
      imagePullPolicy: {{ $gateway.image.pullPolicy }}
      command:
        - python
        - /srv/chart/make_secrets.py
        - --secret={{ include "forebay.secretName" . }}
        - --token={{ $keys.jwtSecret }}
        - --token={{ $keys.keySecret }}
        - --token={{ $keys.adminPassword }}
        - --token={{ $keys.cachePassword }}
        - --api-key={{ $keys.apiKey }}
        {{- if .Values.redis.enabled }}
        - --redis-url={{ $keys.redisUrl }}
        - --redis-host={{ include "forebay.fullname" . }}-cache
        - --redis-password={{ $keys.cachePassword }}
        {{- end }}
      securityContext:
        {{- include "forebay.containerSecurity" (dict "root" . "values" $gateway) | nindent 8 }}
      resources:
        requests:
          cpu: 50m
          memory: 64Mi
        limits:
          cpu: 500m
          memory: 128Mi
      volumeMounts:
        - name: script
          mountPath: /srv/chart
          readOnly: true
        # The one pod of the chart that talks to Kubernetes, beside the gateway with `discovery: kubernetes`.
        - name: kubernetes
          mountPath: /var/run/secrets/kubernetes.io/serviceaccount
          readOnly: true
  volumes:
    - name: script
      configMap:
        name: {{ include "forebay.fullname" . }}-secrets
    {{- include "forebay.kubernetesVolume" 600 | nindent 4 }}
{{- end -}}
