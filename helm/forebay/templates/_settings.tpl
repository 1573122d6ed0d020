{{/* The gateway's settings by what they are about, as lines of its ConfigMap. What is empty or null is left out, and the
     gateway's own default holds. */}}

{{/* What a key may use, and what it costs. */}}
{{- define "forebay.limitSettings" -}}
{{- $limits := .Values.gateway.limits -}}
FOREBAY_REQUESTS_PER_MINUTE: {{ $limits.requestsPerMinute | int64 | quote }}
FOREBAY_TOKENS_PER_MINUTE: {{ $limits.tokensPerMinute | int64 | quote }}
{{- range $name := list "concurrentRequests" "tokensPerDay" "tokensPerMonth" "microsPerDay" "microsPerMonth" }}
{{- with get $limits $name }}
FOREBAY_{{ snakecase $name | upper }}: {{ . | int64 | quote }}
{{- end }}
{{- end }}
FOREBAY_DEFAULT_MAX_TOKENS: {{ $limits.defaultMaxTokens | int64 | quote }}
{{- with .Values.gateway.prices }}
FOREBAY_PRICES: {{ toJson . | quote }}
{{- end }}
{{- end -}}

{{/* Which model and which pod a request goes to. */}}
{{- define "forebay.routingSettings" -}}
{{- $routing := .Values.gateway.routing -}}
{{- with include "forebay.expectedModels" . -}}
FOREBAY_EXPECTED_MODELS: {{ . | quote }}
{{ end -}}
{{- with $routing.aliases -}}
FOREBAY_ALIASES: {{ toJson . | quote }}
{{ end -}}
{{- with $routing.fallbacks -}}
FOREBAY_FALLBACKS: {{ toJson . | quote }}
{{ end -}}
FOREBAY_LOAD_BOUND: {{ $routing.loadBound | quote }}
FOREBAY_RETRY_BUDGET: {{ $routing.retryBudget | quote }}
FOREBAY_BREAKER_FAILURES: {{ $routing.breaker.failures | int | quote }}
FOREBAY_BREAKER_PAUSE: {{ $routing.breaker.pause | quote }}
FOREBAY_HOLD_TIMEOUT: {{ $routing.hold.timeout | quote }}
FOREBAY_HOLD_MAX: {{ $routing.hold.max | int | quote }}
{{- end -}}

{{/* Answers that are given again. */}}
{{- define "forebay.recallSettings" -}}
{{- $semantic := .Values.gateway.semanticCache -}}
FOREBAY_CACHE_TTL: {{ .Values.gateway.responseCache.ttl | int | quote }}
FOREBAY_STREAM_REPLAY_TTL: {{ .Values.gateway.replay.streamTtl | int | quote }}
FOREBAY_IDEMPOTENCY_TTL: {{ .Values.gateway.replay.idempotencyTtl | int | quote }}
{{- with $semantic.url }}
FOREBAY_SEMANTIC_CACHE_URL: {{ . | quote }}
FOREBAY_SEMANTIC_CACHE_THRESHOLD: {{ $semantic.threshold | quote }}
FOREBAY_SEMANTIC_CACHE_ENTRIES: {{ $semantic.entries | int | quote }}
FOREBAY_SEMANTIC_CACHE_TIMEOUT: {{ $semantic.timeout | quote }}
{{- with $semantic.model }}
FOREBAY_SEMANTIC_CACHE_MODEL: {{ . | quote }}
{{- end }}
{{- if $semantic.existingSecret }}
FOREBAY_SEMANTIC_CACHE_KEY_FILE: /run/secrets/semantic-cache/key
{{- end }}
{{- end }}
{{- end -}}

{{/* What may come in. */}}
{{- define "forebay.inputSettings" -}}
{{- $input := .Values.gateway.input -}}
{{- $moderation := .Values.gateway.moderation -}}
FOREBAY_MAX_BODY_BYTES: {{ .Values.gateway.maxBodyBytes | int | quote }}
FOREBAY_MAX_JSON_DEPTH: {{ $input.maxJsonDepth | int | quote }}
FOREBAY_MAX_MESSAGES: {{ $input.maxMessages | int | quote }}
FOREBAY_MAX_TEXT_LENGTH: {{ $input.maxTextLength | int | quote }}
FOREBAY_STRIP_HTML: {{ $input.stripHtml | quote }}
{{- with $moderation.url }}
FOREBAY_MODERATION_URL: {{ . | quote }}
FOREBAY_MODERATION_TIMEOUT: {{ $moderation.timeout | quote }}
FOREBAY_MODERATION_FAILURE: {{ $moderation.failure }}
{{- with $moderation.model }}
FOREBAY_MODERATION_MODEL: {{ . | quote }}
{{- end }}
{{- if $moderation.existingSecret }}
FOREBAY_MODERATION_KEY_FILE: /run/secrets/moderation/key
{{- end }}
{{- end }}
{{- end -}}

{{/* Who may come in. */}}
{{- define "forebay.identitySettings" -}}
{{- $gateway := .Values.gateway -}}
{{- $oidc := $gateway.oidc -}}
{{- $exposed := or .Values.ingress.enabled .Values.route.enabled | ternary 1 0 -}}
FOREBAY_TRUSTED_PROXIES: {{ kindIs "invalid" $gateway.trustedProxies | ternary $exposed $gateway.trustedProxies | int | quote }}
FOREBAY_LOGIN_WINDOW: {{ $gateway.logins.window | int | quote }}
FOREBAY_LOGIN_ATTEMPTS_PER_USER: {{ $gateway.logins.attemptsPerUser | int | quote }}
FOREBAY_LOGIN_ATTEMPTS_PER_ADDRESS: {{ $gateway.logins.attemptsPerAddress | int | quote }}
{{- if .Values.secrets.keys.jwtFormerSecrets }}
FOREBAY_JWT_FORMER_SECRETS_FILE: /run/secrets/forebay/jwt-former-secrets
{{- end }}
{{- with $oidc.issuer }}
FOREBAY_OIDC_ISSUER: {{ . | quote }}
FOREBAY_OIDC_AUDIENCE: {{ join "," $oidc.audience | quote }}
FOREBAY_OIDC_TENANT_CLAIM: {{ $oidc.tenantClaim | quote }}
FOREBAY_OIDC_CREATE_TENANTS: {{ $oidc.createTenants | quote }}
FOREBAY_OIDC_SCOPE_CLAIM: {{ $oidc.scopeClaim | quote }}
{{- with $oidc.jwksUri }}
FOREBAY_OIDC_JWKS_URI: {{ . | quote }}
{{- end }}
{{- with $oidc.tenants }}
FOREBAY_OIDC_TENANTS: {{ toJson . | quote }}
{{- end }}
{{- with $oidc.scopes }}
FOREBAY_OIDC_SCOPES: {{ toJson . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Keys for services that the gateway asks, each from a Secret of its own; prints a JSON list of name, secret and key. */}}
{{- define "forebay.serviceKeys" -}}
{{- $found := list -}}
{{- range $name, $of := dict "moderation" .Values.gateway.moderation "semantic-cache" .Values.gateway.semanticCache -}}
{{- if and $of.url $of.existingSecret -}}
{{- $found = append $found (dict "name" $name "secret" $of.existingSecret "key" $of.key) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
