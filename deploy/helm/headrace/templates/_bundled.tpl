{{/* The Secret with the bundled server's password: the user's, or the chart's. */}}
{{- define "headrace.postgresPassword" -}}
{{- with .Values.bundled.postgres.existingSecret -}}
name: {{ default (printf "%s-postgres" (include "headrace.fullname" $)) .name | quote }}
key: {{ empty .name | ternary "password" .key | quote }}
{{- end -}}
{{- end -}}

{{/* A password, base64: the one that exists, or a new one. A new one for data that exist would lock everybody out. */}}
{{- define "headrace.generatedPassword" -}}
{{- $existing := lookup "v1" "Secret" .Release.Namespace (printf "%s-postgres" (include "headrace.fullname" .)) -}}
{{- $kept := dig "data" "password" "" (default dict $existing) -}}
{{- default (randAlphaNum 32 | b64enc) $kept -}}
{{- end -}}

{{/* A bundled server's Service: a cluster address, which outlives a restart of the pod. root, name, component, port. */}}
{{- define "headrace.bundledService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "headrace.metadata" . | nindent 2 }}
spec:
  type: ClusterIP
  selector:
    {{- include "headrace.selector" . | nindent 4 }}
  ports:
    - name: {{ .component }}
      port: {{ .port }}
      targetPort: {{ .component }}
{{- end -}}

{{/* The claim of a bundled server's volume. Its labels never change: Kubernetes cannot change them. */}}
{{- define "headrace.bundledClaim" -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata:
    name: data
    labels:
      {{- include "headrace.selector" . | nindent 6 }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .server.persistence.storageClass }}
    storageClassName: {{ quote . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .server.persistence.size }}
{{- end -}}

{{/* What both bundled servers' pods say: root, server (its values), user. */}}
{{- define "headrace.bundledPod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "headrace.podSecurity" .user | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .server.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .server.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "headrace.postgresProbe" -}}
exec:
  command: [pg_isready, --host=127.0.0.1, --username=postgres, --dbname=headrace]
{{- end -}}
