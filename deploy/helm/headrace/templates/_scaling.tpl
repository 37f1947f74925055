{{- define "headrace.scaleTarget" -}}
apiVersion: apps/v1
kind: Deployment
name: {{ .name }}
{{- end -}}

{{- define "headrace.scaleDown" -}}
scaleDown:
  stabilizationWindowSeconds: {{ int .scaleDownSeconds }}
{{- end -}}

{{- define "headrace.hpaMetric.cpu" -}}
- type: Resource
  resource:
    name: cpu
    target:
      type: Utilization
      averageUtilization: {{ int .values.autoscaling.cpuUtilization }}
{{- end -}}

{{- define "headrace.hpaMetric.work" -}}
- type: External
  external:
    metric:
      name: headrace_queue_work
      {{- with .values.autoscaling.queues }}
      selector:
        {{- if eq (len .) 1 }}
        matchLabels:
          queue: {{ first . | quote }}
        {{- else }}
        matchExpressions:
          - key: queue
            operator: In
            values: {{ toJson . }}
        {{- end }}
      {{- end }}
    target:
      type: AverageValue
      averageValue: {{ int .values.autoscaling.targetWork | quote }}
{{- end -}}

{{/* What the external scaler is told: root, scaling, metric, target. Texts only: KEDA passes them on as they are. */}}
{{- define "headrace.scalerMetadata" -}}
scalerAddress: {{ include "headrace.fullname" .root }}-status.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}:50052
metric: {{ .metric }}
target: {{ int .target | quote }}
{{- with .scaling.queues }}
queues: {{ join "," . | quote }}
{{- end }}
{{- end -}}

{{- define "headrace.scalerAuthentication" -}}
{{- if include "headrace.usesTls" . -}}
authenticationRef:
  name: {{ include "headrace.fullname" . }}-scaler
{{- end }}
{{- end -}}
