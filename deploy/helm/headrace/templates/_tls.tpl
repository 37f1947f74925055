{{/* "true" where the services speak TLS. */}}
{{- define "headrace.usesTls" -}}
{{- if .Values.tls.existingSecret.name }}true{{ end -}}
{{- end -}}

{{/* What a service is told of its certificate. */}}
{{- define "headrace.tlsEnv" -}}
{{- if include "headrace.usesTls" . }}
{{- with .Values.tls.existingSecret }}
- name: HEADRACE_TLS_CERT_FILE
  value: {{ printf "/etc/headrace-tls/%s" .certKey | quote }}
- name: HEADRACE_TLS_KEY_FILE
  value: {{ printf "/etc/headrace-tls/%s" .keyKey | quote }}
{{- with .clientCaKey }}
- name: HEADRACE_TLS_CLIENT_CA_FILE
  value: {{ printf "/etc/headrace-tls/%s" . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What a client of ours is told of it. */}}
{{- define "headrace.tlsClientEnv" -}}
{{- if include "headrace.usesTls" . }}
- name: HEADRACE_TLS_CA_FILE
  value: /etc/headrace-tls/ca.crt
{{- if .Values.tls.existingSecret.clientCaKey }}
- name: HEADRACE_CLIENT_CERT_FILE
  value: /etc/headrace-tls/client.crt
- name: HEADRACE_CLIENT_KEY_FILE
  value: /etc/headrace-tls/client.key
{{- end }}
{{- end }}
{{- end -}}

{{/* A list of mounts; empty without TLS. A whole folder: Kubernetes does not renew single files that are mounted. */}}
{{- define "headrace.tlsMounts" -}}
{{- if include "headrace.usesTls" . }}
- name: tls
  mountPath: /etc/headrace-tls
  readOnly: true
{{- end }}
{{- end -}}

{{/* A service's volumes of it, as a list. */}}
{{- define "headrace.tlsVolumes" -}}
{{- if include "headrace.usesTls" . }}
- name: tls
  secret:
    secretName: {{ quote .Values.tls.existingSecret.name }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* A client's volumes of it: the authority, and its own certificate where one is required; never the services' key. */}}
{{- define "headrace.tlsClientVolumes" -}}
{{- if include "headrace.usesTls" . }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ quote .Values.tls.existingSecret.name }}
          items:
            - key: {{ quote .Values.tls.caKey }}
              path: ca.crt
      {{- if .Values.tls.existingSecret.clientCaKey }}
      {{- $client := include "headrace.tlsClientSecret" . | fromYaml }}
      - secret:
          name: {{ quote $client.name }}
          items:
            - key: {{ quote $client.certKey }}
              path: client.crt
            - key: {{ quote $client.keyKey }}
              path: client.key
      {{- end }}
{{- end }}
{{- end -}}

{{/* Which Secret has the client's certificate, and under which keys. */}}
{{- define "headrace.tlsClientSecret" -}}
{{- $own := .Values.tls.clientSecret -}}
{{- $source := empty $own.name | ternary .Values.tls.existingSecret $own -}}
{{- pick $source "name" "certKey" "keyKey" | toYaml -}}
{{- end -}}

{{/* Whether a service is ready. Kubernetes' own gRPC probe speaks no TLS; both say the same. root and port. */}}
{{- define "headrace.readyProbe" -}}
{{- if include "headrace.usesTls" .root }}
httpGet:
  path: /readyz
  port: ops
{{- else }}
grpc:
  port: {{ .port }}
{{- end }}
{{- end -}}

{{/* The parameters of KEDA's connection, as a list. */}}
{{- define "headrace.tlsScalerParameters" -}}
- parameter: caCert
  name: {{ quote .Values.tls.existingSecret.name }}
  key: {{ quote .Values.tls.caKey }}
{{- if .Values.tls.existingSecret.clientCaKey }}
{{- $client := include "headrace.tlsClientSecret" . | fromYaml }}
- parameter: tlsClientCert
  name: {{ quote $client.name }}
  key: {{ quote $client.certKey }}
- parameter: tlsClientKey
  name: {{ quote $client.name }}
  key: {{ quote $client.keyKey }}
{{- end }}
{{- end -}}
