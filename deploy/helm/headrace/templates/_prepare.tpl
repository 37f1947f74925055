{{/* "true" where the database and the broker exist before the installation, so that a hook can prepare them. */}}
{{- define "headrace.preparesInHook" -}}
{{- if not (or .Values.bundled.postgres.enabled (include "headrace.bundlesNats" .)) }}true{{ end -}}
{{- end -}}

{{/* Names under which this pod finds the ConfigMap and the chart's Secret: a hook before the installation has its own. */}}
{{- define "headrace.prepareConfigName" -}}
{{- include "headrace.fullname" . }}{{ if include "headrace.preparesInHook" . }}-prepare{{ end -}}
{{- end -}}

{{- define "headrace.hookAnnotations" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{- define "headrace.migrateContainer" -}}
{{- $env := include "headrace.databaseEnv" (dict "root" . "secret" (include "headrace.prepareConfigName" .) "use" "migrate") -}}
{{- include "headrace.command" (dict "root" . "name" "migrate" "command" (list "headrace" "db" "migrate" "--wait" "120") "env" $env) -}}
{{- end -}}

{{- define "headrace.topologyContainer" -}}
{{- $replicas := int .Values.nats.streamReplicas | toString -}}
{{- $command := list "headrace" "topology" "apply" "--wait" "120" "--replicas" $replicas -}}
{{- $env := include "headrace.natsEnv" (dict "root" . "secret" (include "headrace.prepareConfigName" .) "use" "admin") -}}
{{- include "headrace.command" (dict "root" . "name" "topology" "command" $command "env" $env) -}}
{{- end -}}

{{/* The job's pod: the schema first, then the streams, one after the other. Without a broker the schema alone. */}}
{{- define "headrace.preparePod" -}}
restartPolicy: Never
automountServiceAccountToken: false
{{- include "headrace.podBasics" . | nindent 0 }}
{{- if include "headrace.usesNats" . }}
initContainers:
  {{- include "headrace.migrateContainer" . | nindent 2 }}
containers:
  {{- include "headrace.topologyContainer" . | nindent 2 }}
{{- else }}
containers:
  {{- include "headrace.migrateContainer" . | nindent 2 }}
{{- end }}
volumes:
  {{- include "headrace.volumes" (dict "root" . "config" (include "headrace.prepareConfigName" .)) | nindent 2 }}
{{- end -}}
