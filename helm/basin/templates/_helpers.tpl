{{- /* The ports. They are no values: nothing else listens in the pod, and Services may map them. */}}
{{- define "basin.grpcPort" }}50051{{ end }}
{{- define "basin.healthPort" }}50052{{ end }}
{{- define "basin.metricsPort" }}9464{{ end }}
{{- define "basin.rayPort" }}6379{{ end }}
{{- define "basin.rayletPort" }}6380{{ end }}

{{- /* Short enough for all that Kubernetes and KubeRay put behind it. */}}
{{- define "basin.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-basin" .Release.Name) (contains "basin" .Release.Name) -}}
{{- .Values.fullnameOverride | default $name | trunc 36 | trimSuffix "-" -}}
{{- end }}

{{- define "basin.selectorLabels" -}}
app.kubernetes.io/name: basin
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "basin.serverLabels" -}}
{{ include "basin.selectorLabels" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "basin.labels" -}}
{{ include "basin.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "basin.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" (gt (int .Values.gpu.count) 0))) }}
{{- end -}}
{{- end }}

{{- define "basin.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "basin.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{- /* Whether there may be more than one server: "true" or "". */}}
{{- define "basin.several" -}}
{{- if and (not .Values.store.migrations.to) (or (ne .Values.autoscaling.type "none") (gt (int .Values.replicaCount) 1)) }}true{{ end -}}
{{- end }}

{{- define "basin.autoscaled" -}}
{{- if and (ne .Values.autoscaling.type "none") (not .Values.store.migrations.to) }}true{{ end -}}
{{- end }}

{{- define "basin.graceSeconds" -}}
{{- dig "grace_seconds" 30 .Values.config | float64 | ceil | int -}}
{{- end }}

{{- /* From the end of a server's endpoint until it is killed. */}}
{{- define "basin.terminationGracePeriodSeconds" -}}
{{- $drain := add .Values.preStopSeconds (include "basin.graceSeconds" .) -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if and $given (lt (int $given) (int $drain)) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, but preStopSeconds and config.grace_seconds take %d" (int $given) $drain) -}}
{{- end -}}
{{- $given | default (add $drain 10) -}}
{{- end }}

{{- define "basin.rayName" -}}
{{ include "basin.fullname" . }}-ray
{{- end }}

{{- /* HOST:PORT of the Ray cluster's head; "" without one. */}}
{{- define "basin.rayAddress" -}}
{{- if .Values.ray.cluster.enabled -}}
{{ include "basin.rayName" . }}-head-svc.{{ .Release.Namespace }}.svc:{{ include "basin.rayPort" . }}
{{- else -}}
{{ .Values.ray.address }}
{{- end -}}
{{- end }}

{{- define "basin.modelsClaim" -}}
{{- .Values.models.persistence.existingClaim | default (printf "%s-models" (include "basin.fullname" .)) -}}
{{- end }}

{{- /* Whether pods on different nodes cannot mount the models at once: "true" or "". */}}
{{- define "basin.modelsOnOneNode" -}}
{{- with .Values.models.persistence }}{{ if and .enabled (not .existingClaim) (not (has "ReadWriteMany" .accessModes)) }}true{{ end }}{{ end -}}
{{- end }}

{{- /* Of the one pod that a StatefulSet of one makes. */}}
{{- define "basin.dataClaim" -}}
{{- .Values.store.sqlite.persistence.existingClaim | default (printf "data-%s-0" (include "basin.fullname" .)) -}}
{{- end }}

{{- define "basin.sqliteURL" }}sqlite:////data/basin.db{{ end }}

{{- /* The settings file: `config`, and over it what the chart knows. */}}
{{- define "basin.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "listen" (printf "0.0.0.0:%s" (include "basin.grpcPort" .)) -}}
{{- $_ := set $config "health" (printf "0.0.0.0:%s" (include "basin.healthPort" .)) -}}
{{- $_ := set $config "metrics" (printf "0.0.0.0:%s" (include "basin.metricsPort" .)) -}}
{{- if .Values.tls.enabled -}}
{{- $tls := dict "certificate" "/etc/basin/tls/tls.crt" "key" "/etc/basin/tls/tls.key" -}}
{{- with .Values.tls.clientCA -}}
{{- if .existingSecret }}{{ $_ := set $tls "client_ca" (printf "/etc/basin/client-ca/%s" .key) }}{{ end -}}
{{- end -}}
{{- $_ := set $config "tls" $tls -}}
{{- end -}}
{{- with .Values.auth.tokens -}}
{{- if .existingSecret -}}
{{- $_ := set $config "auth" (merge (dict "tokens" (printf "/etc/basin/tokens/%s" .key)) (get $config "auth" | default dict)) -}}
{{- end -}}
{{- end -}}
{{- $batches := get $config "batches" | default dict -}}
{{- if eq .Values.store.type "sqlite" }}{{ $_ := set $batches "store" (include "basin.sqliteURL" .) }}{{ end -}}
{{- with include "basin.rayAddress" . -}}
{{- $_ := set $batches "runner" "ray" -}}
{{- $_ := set $batches "ray" (merge (dict "address" .) (get $batches "ray" | default dict)) -}}
{{- end -}}
{{- if $batches }}{{ $_ := set $config "batches" $batches }}{{ end -}}
{{- toYaml $config -}}
{{- end }}

{{- /* What all containers of Basin's image have in common. */}}
{{- define "basin.container" -}}
image: {{ include "basin.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end }}

{{- /* What all pods have in common. */}}
{{- define "basin.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* BASIN_BATCHES__STORE of a server, BASIN_STORE of a command. */}}
{{- define "basin.storeEnv" -}}
- name: {{ .name }}
{{- if eq .root.Values.store.type "sqlite" }}
  value: {{ include "basin.sqliteURL" .root }}
{{- else }}
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.store.postgresql.existingSecret }}
      key: {{ .root.Values.store.postgresql.key }}
{{- end }}
{{- end }}

{{- /* The mark of what is downloaded: a digest of the list; "" where that is empty. */}}
{{- define "basin.downloads" -}}
{{- with .Values.models.download.repositories }}{{ toJson . | sha256sum | trunc 10 }}{{ end -}}
{{- end }}

{{- /* Resources of a container that works on GPUs. */}}
{{- define "basin.gpuResources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int .gpu.count) 0 -}}
{{- $limits := get $resources "limits" | default dict -}}
{{- $_ := set $limits .gpu.resource (int .gpu.count) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- /* What the schema cannot see, one line each. */}}
{{- define "basin.check" -}}
{{- range $id, $checkpoint := .Values.config.checkpoints -}}
{{- if and (kindIs "map" $checkpoint) (hasPrefix "cuda" (get $checkpoint "device" | default "cpu")) (eq (int $.Values.gpu.count) 0) -}}
{{- fail (printf "config.checkpoints.%s is on %s, but gpu.count is 0" $id $checkpoint.device) -}}
{{- end -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.type "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (include "basin.modelsOnOneNode" .) (or (include "basin.several" .) .Values.ray.cluster.enabled) -}}
{{- fail "models.persistence.accessModes must hold ReadWriteMany: more than one pod mounts the volume" -}}
{{- end -}}
{{- if and .Values.store.migrations.to (eq .Values.store.type "sqlite") (not .Values.store.sqlite.persistence.enabled) -}}
{{- fail "store.migrations.to has no tables to step back: store.sqlite.persistence is off" -}}
{{- end -}}
{{- end }}
