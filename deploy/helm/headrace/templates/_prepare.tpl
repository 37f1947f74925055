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

{{/* After a restore, before the services start: docs/backup.md. */}}
{{- define "headrace.restoredContainer" -}}
{{- $env := include "headrace.databaseEnv" (dict "root" . "secret" (include "headrace.prepareConfigName" .) "use" "migrate") -}}
{{- include "headrace.command" (dict "root" . "name" "restored" "command" (list "headrace" "db" "restored") "env" $env) -}}
{{- end -}}

{{- define "headrace.topologyContainer" -}}
{{- $replicas := int .Values.nats.streamReplicas | toString -}}
{{- $command := list "headrace" "topology" "apply" "--wait" "120" "--replicas" $replicas -}}
{{- $env := include "headrace.natsEnv" (dict "root" . "secret" (include "headrace.prepareConfigName" .) "use" "admin") -}}
{{- include "headrace.command" (dict "root" . "name" "topology" "command" $command "env" $env) -}}
{{- end -}}

{{/* The job's pod: the schema first, the epochs after a restore, then the streams, one after the other. Without a broker no streams. */}}
{{- define "headrace.preparePod" -}}
{{- $steps := list (include "headrace.migrateContainer" .) -}}
{{- if .Values.prepare.restored }}{{ $steps = append $steps (include "headrace.restoredContainer" .) }}{{ end -}}
{{- if include "headrace.usesNats" . }}{{ $steps = append $steps (include "headrace.topologyContainer" .) }}{{ end -}}
restartPolicy: Never
automountServiceAccountToken: false
{{- include "headrace.podBasics" . | nindent 0 }}
{{- include "headrace.commandScheduling" . }}
{{- with initial $steps }}
initContainers:
  {{- range . }}
  {{- nindent 2 . }}
  {{- end }}
{{- end }}
containers:
  {{- last $steps | nindent 2 }}
volumes:
  {{- include "headrace.volumes" (dict "root" . "config" (include "headrace.prepareConfigName" .)) | nindent 2 }}
{{- end -}}
