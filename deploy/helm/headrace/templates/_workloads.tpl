{{/* What runs as a Deployment, as JSON: a list of {component, pool, name, values}. A pool's values are laid over
the consumer's: maps are merged, everything else replaces, also false, 0 and empty ones. */}}
{{- define "headrace.workloads" -}}
{{- $full := include "headrace.fullname" . -}}
{{- $found := list
  (dict "component" "producer" "name" (printf "%s-producer" $full) "values" .Values.producer)
  (dict "component" "status" "name" (printf "%s-status" $full) "values" .Values.status)
  (dict "component" "consumer" "pool" "default" "name" (printf "%s-consumer" $full) "values" .Values.consumer) -}}
{{- range $pool, $over := .Values.consumerPools -}}
{{- $values := mergeOverwrite (deepCopy $.Values.consumer) (default dict $over) -}}
{{- $name := printf "%s-consumer-%s" $full $pool -}}
{{- $found = append $found (dict "component" "consumer" "pool" $pool "name" $name "values" $values) -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* gRPC port of a component. */}}
{{- define "headrace.port" -}}
{{- get (dict "producer" 50051 "status" 50052 "consumer" 50053) . -}}
{{- end -}}

{{- define "headrace.serviceAccountName" -}}
{{- default .name .values.serviceAccount.name -}}
{{- end -}}

{{/* "true" where Kubernetes, not `replicas`, decides the number of pods. */}}
{{- define "headrace.scaled" -}}
{{- if ne .autoscaling.mode "none" }}true{{ end -}}
{{- end -}}

{{/* Connections to Postgres at the most: every workload at its greatest and with the surge of a roll-out, and ten for people,
migrations and backups. The figures of a pod are those of docs/postgres.md. */}}
{{- define "headrace.connections" -}}
{{- $sum := 10 -}}
{{- range include "headrace.workloads" . | fromJsonArray -}}
{{- $pods := empty (include "headrace.scaled" .values) | ternary .values.replicas .values.autoscaling.maxReplicas | int -}}
{{- $surge := toString .values.rollingUpdate.maxSurge -}}
{{- $more := trimSuffix "%" $surge | int -}}
{{- if hasSuffix "%" $surge }}{{ $more = div (add (mul $pods $more) 99) 100 }}{{ end -}}
{{- if $pods }}{{ $sum = add $sum (mul (add $pods $more) (get (dict "producer" 12 "consumer" 10 "status" 8) .component)) }}{{ end -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* "true" where something is scaled by the external scaler. */}}
{{- define "headrace.usesKeda" -}}
{{- range include "headrace.workloads" . | fromJsonArray -}}
{{- if eq .values.autoscaling.mode "keda" }}true{{ end -}}
{{- end -}}
{{- end -}}
