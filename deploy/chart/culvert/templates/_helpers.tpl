{{/* The image that everything runs. */}}
{{- define "culvert.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What tells one part from another, and never changes: selectors are made of it. */}}
{{- define "culvert.agent.selector" -}}
app.kubernetes.io/name: culvert
{{- end }}
{{- define "culvert.ca.selector" -}}
app.kubernetes.io/name: culvert-ca
app.kubernetes.io/component: ca
{{- end }}

{{/* What every object has besides. */}}
{{- define "culvert.labels" -}}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Where agents ask for certificates. */}}
{{- define "culvert.ca.address" -}}
{{ .Values.ca.address | default (printf "https://culvert-ca.%s.svc:15012" .Release.Namespace) }}
{{- end }}
