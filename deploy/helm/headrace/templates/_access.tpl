{{/* The access file of the services that answer clients, as JSON arrays: root and component. Mounted as a folder, so that a
change of the Secret reaches the pod, which reads it again. */}}
{{- define "headrace.accessMounts" -}}
{{- if include "headrace.accessFile" . -}}
[{"name": "access", "mountPath": "/etc/headrace-access", "readOnly": true}]
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{- define "headrace.accessVolumes" -}}
{{- if include "headrace.accessFile" . -}}
{{- list (dict "name" "access" "secret" (dict "secretName" .root.Values.auth.existingSecret.name)) | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* Its path; empty: there is none, or the service asks nobody who calls. */}}
{{- define "headrace.accessFile" -}}
{{- with .root.Values.auth.existingSecret }}
{{- if and .name (ne $.component "consumer") }}/etc/headrace-access/{{ .key }}{{ end }}
{{- end }}
{{- end -}}
