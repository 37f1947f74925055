{{/* What the schema cannot say, because it concerns more than one value. Each message names what to set. */}}
{{- define "headrace.validate" -}}
{{- include "headrace.validateDatabase" . -}}
{{- include "headrace.validateNats" . -}}
{{- include "headrace.validateConfig" . -}}
{{- if and (eq .Values.ai.backend "openai") (not .Values.ai.model) -}}
{{- fail "ai.backend is openai, which needs a model: set ai.model to its name on the server" -}}
{{- end -}}
{{- range include "headrace.workloads" . | fromJsonArray -}}
{{- include "headrace.validateWorkload" . -}}
{{- end -}}
{{- end -}}

{{- define "headrace.validateDatabase" -}}
{{- $ways := include "headrace.ways" (list .Values.database.existingSecret.name .Values.database.url .Values.bundled.postgres.enabled) | int -}}
{{- if ne $ways 1 -}}
{{- $found := eq $ways 0 | ternary "Headrace needs Postgres and the values name none" "the values name more than one Postgres" -}}
{{- fail (printf "%s: set exactly one of database.existingSecret.name, database.url and bundled.postgres.enabled" $found) -}}
{{- end -}}
{{- end -}}

{{- define "headrace.validateNats" -}}
{{- if include "headrace.usesNats" . -}}
{{- $ways := include "headrace.ways" (list .Values.nats.existingSecret.name .Values.nats.url .Values.bundled.nats.enabled) | int -}}
{{- if ne $ways 1 -}}
{{- $found := eq $ways 0 | ternary "broker is nats and the values name no server" "the values name more than one NATS" -}}
{{- fail (printf "%s: set exactly one of nats.existingSecret.name, nats.url and bundled.nats.enabled, or broker to none" $found) -}}
{{- end -}}
{{- if and .Values.bundled.nats.enabled (gt (int .Values.nats.streamReplicas) 1) -}}
{{- fail (printf "nats.streamReplicas is %d and the bundled NATS is one server: set nats.streamReplicas to 1, or give a cluster in nats.existingSecret.name" (int .Values.nats.streamReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* headrace.toml itself is checked by the services; here, that it is TOML and that scaling asks for queues that it declares. */}}
{{- define "headrace.validateConfig" -}}
{{- $config := fromToml .Values.config -}}
{{- with get $config "Error" }}{{ fail (printf "config is not TOML: %s" .) }}{{ end -}}
{{- $declared := list "default" -}}
{{- range get $config "queues" }}{{ $declared = append $declared .name }}{{ end -}}
{{- range $workload := include "headrace.workloads" . | fromJsonArray -}}
{{- range $queue := $workload.values.autoscaling.queues -}}
{{- if not (has $queue $declared) -}}
{{- fail (printf "%s.autoscaling.queues has %s, which config does not declare: add [[queues]] with name = %s to config" (include "headrace.where" $workload) (quote $queue) (quote $queue)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where a workload's values stand. */}}
{{- define "headrace.where" -}}
{{- eq (default "default" .pool) "default" | ternary .component (printf "consumerPools.%s" .pool) -}}
{{- end -}}

{{/* How many of the given values are set. */}}
{{- define "headrace.ways" -}}
{{- $count := 0 -}}
{{- range . }}{{ if . }}{{ $count = add1 $count }}{{ end }}{{ end -}}
{{- $count -}}
{{- end -}}

{{- define "headrace.validateWorkload" -}}
{{- $where := include "headrace.where" . -}}
{{- $scaling := .values.autoscaling -}}
{{- if gt (int .values.finishSeconds) (int .values.graceSeconds) -}}
{{- fail (printf "%s.finishSeconds is %d and graceSeconds %d: set finishSeconds to at most graceSeconds" $where (int .values.finishSeconds) (int .values.graceSeconds)) -}}
{{- end -}}
{{- if ne $scaling.mode "none" -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "%s.autoscaling.minReplicas is %d and maxReplicas %d: set minReplicas to at most maxReplicas" $where (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $scaling.mode "keda") (gt (int $scaling.fallbackReplicas) (int $scaling.maxReplicas)) -}}
{{- fail (printf "%s.autoscaling.fallbackReplicas is %d and maxReplicas %d: set fallbackReplicas to at most maxReplicas" $where (int $scaling.fallbackReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $scaling.mode "hpa") (eq (int $scaling.minReplicas) 0) -}}
{{- fail (printf "%s.autoscaling.minReplicas is 0, which an HPA cannot do: set it to 1 or more, or autoscaling.mode of consumers to keda" $where) -}}
{{- end -}}
{{- end -}}
{{- $roll := .values.rollingUpdate -}}
{{- if and (has (toString $roll.maxSurge) (list "0" "0%")) (has (toString $roll.maxUnavailable) (list "0" "0%")) -}}
{{- fail (printf "%s.rollingUpdate allows no pod more and no pod fewer, so nothing could be replaced: set maxSurge or maxUnavailable to 1 or more" $where) -}}
{{- end -}}
{{- end -}}
