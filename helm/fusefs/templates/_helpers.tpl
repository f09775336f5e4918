{{- define "fusefs.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 63 is the limit of a label; 16 are for what templates add, "-prometheusrule" being the longest. */}}
{{- define "fusefs.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 47 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Never more than these three: a selector cannot change. Called with (list . "component"). */}}
{{- define "fusefs.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "fusefs.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "fusefs.labels" -}}
{{- $root := index . 0 -}}
{{ include "fusefs.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fusefs
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Called with (list . image). */}}
{{- define "fusefs.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := default $image.registry $root.Values.global.imageRegistry -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{/* Called with (list . "component"). */}}
{{- define "fusefs.serviceAccountName" -}}
{{- $root := index . 0 -}}
{{- $account := (index $root.Values (index . 1)).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "fusefs.fullname" $root) (index . 1)) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{- define "fusefs.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $account := (index $root.Values (index . 1)).serviceAccount -}}
{{- if $account.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "fusefs.serviceAccountName" . }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "fusefs.labels" . | nindent 4 }}
  {{- with $account.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}
{{- end -}}

{{/* What every pod of ours has in common. Called with (list . "component"). */}}
{{- define "fusefs.podSpec" -}}
{{- $root := index . 0 -}}
{{- $part := index $root.Values (index . 1) -}}
serviceAccountName: {{ include "fusefs.serviceAccountName" . }}
# A Service called fusefs would otherwise put variables into our environment.
enableServiceLinks: false
{{- with $root.Values.global.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ ternary (include "fusefs.priorityClassName" $root) . $root.Values.priorityClass.create }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fusefs.priorityClassName" -}}
{{- default (include "fusefs.fullname" .) .Values.priorityClass.name -}}
{{- end -}}

{{/* Pod Security "restricted"; the user is said by the pod. */}}
{{- define "fusefs.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "fusefs.unprivilegedPod" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Never through the mount: a probe that waits for a store would end what nothing is wrong with. */}}
{{- define "fusefs.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 2
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{- define "fusefs.runDir" -}}
/run/{{ .Values.driverName }}
{{- end -}}

{{- define "fusefs.socket" -}}
{{ .Values.kubeletDir }}/plugins/{{ .Values.driverName }}/csi.sock
{{- end -}}

{{/* "true" or nothing. Called with (list . value version): auto is from this Kubernetes on. */}}
{{- define "fusefs.from" -}}
{{- $root := index . 0 -}}
{{- $value := toString (index . 1) -}}
{{- if or (eq $value "true") (and (eq $value "auto") (semverCompare (index . 2) $root.Capabilities.KubeVersion.Version)) -}}
true
{{- end -}}
{{- end -}}

{{- define "fusefs.scc" -}}
{{- $value := toString .Values.openshift.scc -}}
{{- if or (eq $value "true") (and (eq $value "auto") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) -}}
true
{{- end -}}
{{- end -}}

{{/* The Secret of the webhook's certificate. */}}
{{- define "fusefs.webhookSecret" -}}
{{- if eq .Values.webhook.certificate.mode "secret" -}}
{{ .Values.webhook.certificate.secretName }}
{{- else -}}
{{ include "fusefs.fullname" . }}-webhook-tls
{{- end -}}
{{- end -}}

{{/* The pods that ask for a sidecar. */}}
{{- define "fusefs.webhookLabel" -}}
{{ .Values.driverName }}/inject: "true"
{{- end -}}

{{/* Where they may be: not beside the webhook itself, which must come up without it. */}}
{{- define "fusefs.webhookNamespaces" -}}
matchExpressions:
  - {key: kubernetes.io/metadata.name, operator: NotIn, values: [{{ .Release.Namespace }}]}
{{- end -}}
