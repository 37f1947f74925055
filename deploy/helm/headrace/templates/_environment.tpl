{{- define "headrace.usesNats" -}}
{{- if eq .Values.broker "nats" }}true{{ end -}}
{{- end -}}

{{- define "headrace.bundlesNats" -}}
{{- if and (include "headrace.usesNats" .) .Values.bundled.nats.enabled }}true{{ end -}}
{{- end -}}

{{/* Keys of the chart's Secret: the URLs that stand in the values. Empty where there are none. */}}
{{- define "headrace.secretData" -}}
{{- with .Values.database.url }}
database-url: {{ b64enc . }}
{{- end }}
{{- if include "headrace.usesNats" . }}
{{- with .Values.nats.url }}
nats-url: {{ b64enc . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "headrace.configData" -}}
headrace.toml: {{ .Values.config | toJson }}
{{- end -}}

{{/* Where Postgres is: root; `secret`, the name under which the chart's Secret exists for this pod; `use`, whose key of an
existing Secret it is. The bundled server's
password is libpq's own variable, because a password in a URL would have to be escaped. */}}
{{- define "headrace.databaseEnv" -}}
{{- $root := .root -}}
{{- if $root.Values.bundled.postgres.enabled }}
- name: HEADRACE_DATABASE_URL
  value: postgresql://postgres@{{ include "headrace.fullname" $root }}-postgres:5432/headrace
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      {{- include "headrace.postgresPassword" $root | nindent 6 }}
{{- else }}
- name: HEADRACE_DATABASE_URL
  valueFrom:
    secretKeyRef:
      {{- with $root.Values.database.existingSecret }}
      {{- $own := dict "producer" .producerKey "consumer" .consumerKey "status" .statusKey "migrate" .migrateKey }}
      name: {{ default $.secret .name | quote }}
      key: {{ empty .name | ternary "database-url" (default .key (get $own $.use)) | quote }}
      {{- end }}
{{- end }}
{{- end -}}

{{- define "headrace.natsEnv" -}}
{{- $root := .root -}}
{{- if include "headrace.bundlesNats" $root }}
- name: HEADRACE_NATS_URL
  value: nats://{{ include "headrace.fullname" $root }}-nats:4222
{{- else if include "headrace.usesNats" $root }}
- name: HEADRACE_NATS_URL
  valueFrom:
    secretKeyRef:
      {{- with $root.Values.nats.existingSecret }}
      {{- $own := dict "producer" .producerKey "consumer" .consumerKey "status" .statusKey "admin" .adminKey }}
      name: {{ default $.secret .name | quote }}
      key: {{ empty .name | ternary "nats-url" (default .key (get $own $.use)) | quote }}
      {{- end }}
{{- end }}
- name: HEADRACE_BROKER
  value: {{ $root.Values.broker }}
- name: HEADRACE_CONFIG
  value: /etc/headrace/headrace.toml
{{- end -}}

{{- define "headrace.aiEnv" -}}
- name: HEADRACE_AI_BACKEND
  value: {{ .backend }}
{{- if eq .backend "openai" }}
{{- with .baseUrl }}
- name: HEADRACE_AI_BASE_URL
  value: {{ quote . }}
{{- end }}
- name: HEADRACE_AI_MODEL
  value: {{ quote .model }}
- name: HEADRACE_AI_TIMEOUT_SECONDS
  value: {{ toString .timeoutSeconds | quote }}
{{- with .existingSecret }}
{{- if .name }}
- name: HEADRACE_AI_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ quote .name }}
      key: {{ quote .key }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The whole environment of a service's container: root and the workload's fields. */}}
{{- define "headrace.serviceEnv" -}}
{{- $values := .values -}}
{{- $host := .root.Values.listenHost -}}
{{- include "headrace.databaseEnv" (dict "root" .root "secret" (include "headrace.fullname" .root) "use" .component) }}
{{- include "headrace.natsEnv" (dict "root" .root "secret" (include "headrace.fullname" .root) "use" .component) }}
- name: HEADRACE_LISTEN
  value: {{ printf "%s:%s" $host (include "headrace.port" .component) | quote }}
- name: HEADRACE_OPS_LISTEN
  value: {{ printf "%s:9090" $host | quote }}
- name: HEADRACE_GRACE_SECONDS
  value: {{ int $values.graceSeconds | quote }}
- name: HEADRACE_LOG_LEVEL
  value: {{ .root.Values.log.level }}
- name: HEADRACE_LOG_FORMAT
  value: {{ .root.Values.log.format }}
- name: HEADRACE_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: HEADRACE_POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- if eq .component "consumer" }}
- name: HEADRACE_FINISH_SECONDS
  value: {{ int $values.finishSeconds | quote }}
{{- with $values.handlers }}
- name: HEADRACE_HANDLERS
  value: {{ join "," . | quote }}
{{- end }}
{{- if not $values.builtIn }}
- name: HEADRACE_BUILT_IN
  value: "false"
{{- end }}
{{- if $values.podDeletionCost }}
- name: HEADRACE_POD_DELETION_COST
  value: "true"
{{- end }}
{{ include "headrace.aiEnv" .root.Values.ai }}
{{- else }}
- name: HEADRACE_MAX_CONNECTION_AGE_SECONDS
  value: {{ int $values.maxConnectionAgeSeconds | quote }}
- name: HEADRACE_MAX_CONNECTION_AGE_GRACE_SECONDS
  value: {{ int $values.maxConnectionAgeGraceSeconds | quote }}
{{- with include "headrace.accessFile" . }}
- name: HEADRACE_AUTH_FILE
  value: {{ quote . }}
{{- end }}
{{- end }}
{{- if eq .component "status" }}
- name: HEADRACE_HTTP_LISTEN
  value: {{ printf "%s:8080" $host | quote }}
{{- end }}
{{- if eq .component "producer" }}
- name: HEADRACE_RETENTION_DAYS
  value: {{ toString .root.Values.retention.days | quote }}
- name: HEADRACE_RETENTION_EVENTS_DAYS
  value: {{ toString .root.Values.retention.eventsDays | quote }}
- name: HEADRACE_RETENTION_SHARE
  value: {{ toString .root.Values.retention.share | quote }}
{{- end }}
{{- include "headrace.tlsEnv" .root }}
{{ include "headrace.addressEnv" .root }}
{{- with concat .root.Values.extraEnv $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where clients find the services. Those accept and ignore it: it is for `kubectl exec … -- headrace …`. */}}
{{- define "headrace.addressEnv" -}}
- name: HEADRACE_PRODUCER_ADDRESS
  value: dns:///{{ include "headrace.fullname" . }}-producer:50051
- name: HEADRACE_STATUS_ADDRESS
  value: dns:///{{ include "headrace.fullname" . }}-status:50052
{{- end -}}

{{/* What a client of Headrace sets. */}}
{{- define "headrace.clientEnv" -}}
{{- include "headrace.addressEnv" . }}
{{- include "headrace.tlsClientEnv" . }}
{{- end -}}

{{/* The token of `helm test`, where it has one. */}}
{{- define "headrace.verifyEnv" -}}
{{- include "headrace.clientEnv" . }}
{{- with .Values.verify.tokenSecret }}
{{- if .name }}
- name: HEADRACE_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ quote .name }}
      key: {{ quote .key }}
{{- end }}
{{- end }}
{{- end -}}
