{{- define "sbo.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "sbo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "sbo.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Name of the webhook configuration, which the operator fills. One operator serves a cluster, so
the name is fixed: a second release fails at once instead of fighting with the first. */}}
{{- define "sbo.webhookConfiguration" -}}
sqlite-backup-operator
{{- end -}}

{{- define "sbo.selectorLabels" -}}
app.kubernetes.io/name: sqlite-backup-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The chart's own labels. The schema keeps their keys out of every map of labels, so that no key
stands twice. */}}
{{- define "sbo.ownLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "sbo.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: sqlite-backup
{{- end -}}

{{- define "sbo.labels" -}}
{{ include "sbo.labelsAnd" (dict "root" . "more" (dict)) }}
{{- end -}}

{{/* Labels with some more, which win over the common ones; call with (dict "root" $ "more" …). */}}
{{- define "sbo.labelsAnd" -}}
{{ include "sbo.ownLabels" .root }}
{{- with merge (dict) .more .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels, and annotations if there are any, below metadata. */}}
{{- define "sbo.metadata" -}}
labels:
  {{- include "sbo.labels" . | nindent 2 }}
{{- with .Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sbo.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sbo.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sbo.webhookService" -}}
{{ include "sbo.fullname" . }}-webhook
{{- end -}}

{{- define "sbo.tlsSecret" -}}
{{- if .Values.certificates.secretName -}}
{{- .Values.certificates.secretName -}}
{{- else if eq .Values.certificates.mode "provided" -}}
{{- fail "certificates.secretName is needed when certificates.mode is provided" -}}
{{- else -}}
{{- printf "%s-webhook-tls" (include "sbo.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* An image as repository:tag or repository@digest; call with (dict "image" … "root" $). */}}
{{- define "sbo.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}
