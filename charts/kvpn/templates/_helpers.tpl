{{/*
The names below are fixed, not derived from the release: sessions find the
Service by its name, and the custom resources are the cluster's.
*/}}
{{- define "kvpn.selectorLabels" -}}
app.kubernetes.io/name: traffic-manager
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kvpn.labels" -}}
{{ include "kvpn.selectorLabels" . }}
app.kubernetes.io/part-of: kvpn
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Reference of an image; takes a list of the image's values and the chart. */}}
{{- define "kvpn.image" -}}
{{- $image := index . 0 -}}
{{- $chart := index . 1 -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}:{{ $image.tag | default $chart.AppVersion }}
{{- end }}

{{/*
Whether pods are born with an agent, and it is known who deletes what. Not where
the traffic manager is kept to some namespaces: who may write a webhook's
configuration sees the whole cluster.
*/}}
{{- define "kvpn.webhook" -}}
{{- if and .Values.agent.webhook (not .Values.managedNamespaces) }}true{{ end }}
{{- end }}

{{/*
What the traffic manager may do in a namespace whose workloads can be engaged.
*/}}
{{- define "kvpn.workloadRules" -}}
# Engagements are what it makes so. It ends those whose session is gone.
- apiGroups: [kvpn.dev]
  resources: [engagements]
  verbs: [list, watch, delete]
# Lets it end what others own; asked by the ValidatingAdmissionPolicy.
- apiGroups: [kvpn.dev]
  resources: [engagements]
  verbs: [revoke]
# Conditions, and the number of covered pods.
- apiGroups: [kvpn.dev]
  resources: [engagements/status]
  verbs: [patch]
# The selector that says which pods are a workload's.
- apiGroups: [apps]
  resources: [deployments, statefulsets, daemonsets, replicasets]
  verbs: [get]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get]
# The same of Argo's Rollouts, where the cluster has them.
- apiGroups: [argoproj.io]
  resources: [rollouts]
  verbs: [get]
# Those pods, their addresses, and whether their agent runs.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# The same of an agent that the kubelet cannot start, some ten seconds earlier.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
# Puts the agent into a running pod.
- apiGroups: [""]
  resources: [pods/ephemeralcontainers]
  verbs: [patch]
# Service subnets, where the cluster has no ServiceCIDR, and names that lead
# elsewhere than before.
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch]
# The same of headless Services.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end }}
