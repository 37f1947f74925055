{{/* Pod security standard "restricted". `.`: the user's number, which is its group's as well. */}}
{{- define "headrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "headrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What every pod of the Headrace image says. The user is the image's. */}}
{{- define "headrace.podBasics" -}}
enableServiceLinks: false
securityContext:
  {{- include "headrace.podSecurity" 10001 | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* On which nodes the pods run that hold short commands alone: preparing and verifying. */}}
{{- define "headrace.commandScheduling" -}}
{{- range $field := list "nodeSelector" "tolerations" }}
{{- with get $.Values.commands $field }}
{{ $field }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Mounts of every container of the Headrace image: root, and more `mounts`. */}}
{{- define "headrace.mounts" -}}
- name: config
  mountPath: /etc/headrace
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with concat .root.Values.extraVolumeMounts (default list .mounts) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Their volumes: root, `config`, the name under which the ConfigMap exists for this pod, and more `volumes`. */}}
{{- define "headrace.volumes" -}}
- name: config
  configMap:
    name: {{ quote .config }}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- with concat .root.Values.extraVolumes (default list .volumes) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A container that runs one verb of the command line: root, name, command, env, own (parts of the image), more mounts. */}}
{{- define "headrace.command" -}}
- name: {{ .name }}
  image: {{ include "headrace.image" (dict "root" .root "image" .root.Values.image "own" .own) | quote }}
  imagePullPolicy: {{ default .root.Values.image.pullPolicy (default dict .own).pullPolicy }}
  command: {{ toJson .command }}
  env:
    {{- .env | trim | nindent 4 }}
    {{- with .root.Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    {{- toYaml .root.Values.commands.resources | nindent 4 }}
  securityContext:
    {{- include "headrace.containerSecurity" . | nindent 4 }}
  volumeMounts:
    {{- include "headrace.mounts" (dict "root" .root "mounts" .mounts) | nindent 4 }}
{{- end -}}

{{/* The rest of a service's pod that only some installations set. */}}
{{- define "headrace.scheduling" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" }}
{{- with get $.values $field }}
{{ $field }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- if .values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $.values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "headrace.selector" $ | nindent 8 }}
    # Only pods of one revision are counted together: old ones are about to go.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}
