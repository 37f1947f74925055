{{/* spec of a policy for the pods of one component, up to its rules: root, component. Both directions, so all else is denied. */}}
{{- define "headrace.policySubject" -}}
podSelector:
  matchLabels:
    {{- include "headrace.selector" (dict "root" .root "component" .component) | nindent 4 }}
policyTypes: [Ingress, Egress]
{{- end -}}

{{/* A rule for one port: direction (from or to), peers, ports. Nothing where nobody is meant: an empty list would mean everybody. */}}
{{- define "headrace.rule" -}}
{{- if .peers }}
- {{ .direction }}:
    {{- toYaml .peers | nindent 4 }}
  {{- include "headrace.policyPorts" .ports | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "headrace.policyPorts" -}}
ports:
  {{- range . }}
  - protocol: TCP
    port: {{ int . }}
  {{- end }}
{{- end -}}

{{/* Peers: the pods of the given components of this release, as a JSON list. root, components. */}}
{{- define "headrace.ourPods" -}}
{{- $peers := list -}}
{{- range .components -}}
{{- $labels := include "headrace.selector" (dict "root" $.root "component" .) | fromYaml -}}
{{- $peers = append $peers (dict "podSelector" (dict "matchLabels" $labels)) -}}
{{- end -}}
{{- toJson $peers -}}
{{- end -}}

{{/* Egress to a server outside the release: `to` and `ports` of the values. No peers: any address on those ports. */}}
{{- define "headrace.destination" -}}
- {{ include "headrace.policyPorts" .ports | nindent 2 | trim }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "headrace.egressDns" -}}
- ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
  {{- with .Values.networkPolicy.dns }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* What the services and the preparing job reach: DNS, Postgres, NATS. */}}
{{- define "headrace.egressServers" -}}
{{ include "headrace.egressDns" . }}
{{- if .Values.bundled.postgres.enabled }}
{{- $postgres := include "headrace.ourPods" (dict "root" . "components" (list "postgres")) | fromJsonArray }}
{{- include "headrace.rule" (dict "direction" "to" "peers" $postgres "ports" (list 5432)) }}
{{- else }}
{{ include "headrace.destination" .Values.networkPolicy.database }}
{{- end }}
{{- if include "headrace.bundlesNats" . }}
{{- $nats := include "headrace.ourPods" (dict "root" . "components" (list "nats")) | fromJsonArray }}
{{- include "headrace.rule" (dict "direction" "to" "peers" $nats "ports" (list 4222)) }}
{{- else if include "headrace.usesNats" . }}
{{ include "headrace.destination" .Values.networkPolicy.nats }}
{{- end }}
{{- end -}}

{{/* Who may call a service: clients, the test, the command line in a status pod, Prometheus, KEDA. root, component. */}}
{{- define "headrace.ingressService" -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- $port := include "headrace.port" .component -}}
{{- $callers := include "headrace.ourPods" (dict "root" .root "components" (list "verify" "status")) | fromJsonArray -}}
{{- if ne .component "consumer" }}
{{- $ports := eq .component "status" | ternary (list $port 8080) (list $port) }}
{{- include "headrace.rule" (dict "direction" "from" "peers" (concat $policy.clients $callers) "ports" $ports) }}
{{- end }}
{{- include "headrace.rule" (dict "direction" "from" "peers" $policy.monitoring "ports" (list 9090)) }}
{{- if and (eq .component "status") (include "headrace.usesKeda" .root) }}
{{- include "headrace.rule" (dict "direction" "from" "peers" $policy.keda "ports" (list $port)) }}
{{- end }}
{{- end -}}

{{/* What only consumers reach: inference servers and the like, and the Kubernetes API where they set their deletion cost. */}}
{{- define "headrace.egressConsumer" -}}
{{- $costs := false }}
{{- range include "headrace.workloads" . | fromJsonArray }}
{{- if .values.podDeletionCost }}{{ $costs = true }}{{ end }}
{{- end }}
{{- if $costs }}
{{ include "headrace.destination" .Values.networkPolicy.kubernetesApi }}
{{- end }}
{{- with .Values.networkPolicy.consumerEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What only status pods reach, for the command line in them (kubectl exec): the producer, and another status pod. */}}
{{- define "headrace.egressStatus" -}}
{{- range $component, $port := dict "producer" 50051 "status" 50052 }}
{{- $peers := include "headrace.ourPods" (dict "root" $ "components" (list $component)) | fromJsonArray }}
{{- include "headrace.rule" (dict "direction" "to" "peers" $peers "ports" (list $port)) }}
{{- end }}
{{- end -}}

{{/* The preparing job's policy, as part of the release or as a hook: the fields of headrace.metadata. */}}
{{- define "headrace.preparePolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "headrace.metadata" . | nindent 2 }}
spec:
  {{- include "headrace.policySubject" . | nindent 2 }}
  egress:
    {{- include "headrace.egressServers" .root | trim | nindent 4 }}
{{- end -}}
