{{/* First part of every object's name: at most 30 characters, so that what follows always fits into 63. A longer one is cut
and gets a part of its hash, because two releases must not meet at the cut. A Service's name begins with a letter. */}}
{{- define "headrace.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- $full = default $full .Values.fullnameOverride | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $full }}{{ $full = printf "r-%s" $full }}{{ end -}}
{{- if gt (len $full) 30 -}}
{{- $full = printf "%s-%s" ($full | trunc 21 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- define "headrace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels by which pods are selected. They never change: a Deployment's selector cannot. `component` and, for consumers, `pool`. */}}
{{- define "headrace.selector" -}}
app.kubernetes.io/name: {{ include "headrace.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
headrace/pool: {{ quote . }}
{{- end }}
{{- end -}}

{{/* Labels of every object: root, and component and pool where it has them. */}}
{{- define "headrace.labels" -}}
{{- $own := dict
  "app.kubernetes.io/name" (include "headrace.name" .root)
  "app.kubernetes.io/instance" .root.Release.Name
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "app.kubernetes.io/managed-by" .root.Release.Service
  "app.kubernetes.io/part-of" "headrace"
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- with .component }}{{ $_ := set $own "app.kubernetes.io/component" . }}{{ end -}}
{{- with .pool }}{{ $_ := set $own "headrace/pool" . }}{{ end -}}
{{- merge $own .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* Labels of a pod: those that select it win over everything of the user's. */}}
{{- define "headrace.podLabels" -}}
{{- $selecting := include "headrace.selector" . | fromYaml -}}
{{- $version := dict "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- merge $selecting $version (default dict .podLabels) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* metadata of an object: root, name; component, pool, annotations where it has them. */}}
{{- define "headrace.metadata" -}}
name: {{ quote .name }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "headrace.labels" . | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* repository:tag, with the digest where there is one. `own` differs from `image`; a digest belongs to the image that it is given with. */}}
{{- define "headrace.image" -}}
{{- $own := default dict .own -}}
{{- $image := merge (dict) $own .image -}}
{{- $digest := $image.digest -}}
{{- if or $own.repository $own.tag }}{{ $digest = $own.digest }}{{ end -}}
{{- printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) -}}
{{- with $digest }}@{{ . }}{{ end -}}
{{- end -}}
