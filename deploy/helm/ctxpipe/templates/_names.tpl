{{- define "ctxpipe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $whole := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $whole | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects pods; it never changes. (root, role, and for several of a role a part) */}}
{{- define "ctxpipe.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .role }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .part }}
ctxpipe/part: {{ . }}
{{- end }}
{{- end -}}

{{- define "ctxpipe.labels" -}}
{{ include "ctxpipe.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ctxpipe
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "ctxpipe.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "ctxpipe.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "ctxpipe.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "ctxpipe.configMap" -}}
{{ .Values.existingConfigMap | default (printf "%s-config" (include "ctxpipe.fullname" .)) }}
{{- end -}}

{{- define "ctxpipe.partitions" -}}
{{ dig "kafka" "partitions" 8 .Values.config | int }}
{{- end -}}

{{/* The alerts look for jobs with ctxpipe in their name, and tell roles and pods apart. */}}
{{- define "ctxpipe.relabelings" -}}
relabelings:
  - {targetLabel: job, replacement: ctxpipe}
  - {sourceLabels: [__meta_kubernetes_service_label_app_kubernetes_io_component], targetLabel: role}
{{- end }}
