{{- /* The pod of a server. */}}
{{- define "basin.pod" -}}
metadata:
  labels:
    {{- include "basin.serverLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "basin.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "basin.podSpec" . | nindent 2 }}
  serviceAccountName: {{ include "basin.serviceAccountName" . }}
  terminationGracePeriodSeconds: {{ include "basin.terminationGracePeriodSeconds" . }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $selector := dict "labelSelector" (dict "matchLabels" (include "basin.serverLabels" $ | fromYaml)) }}
    {{- range . }}
    {{- list (ternary . (merge $selector .) (hasKey . "labelSelector")) | toYaml | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- if include "basin.rayAddress" . }}
  shareProcessNamespace: true # a Ray driver looks for Ray's processes beside it
  {{- end }}
  {{- if or (include "basin.downloads" .) (include "basin.rayAddress" .) }}
  initContainers:
    {{- with include "basin.downloads" . }}
    - name: wait-for-downloads
      {{- include "basin.container" $ | nindent 6 }}
      command: [sh, -c, "until [ -e /models/.basin/{{ . }} ]; do sleep 2; done"]
      resources:
        requests: {cpu: 10m, memory: 16Mi}
        limits: {memory: 64Mi}
      volumeMounts:
        - {name: models, mountPath: /models, readOnly: true}
    {{- end }}
    {{- with include "basin.rayAddress" . }}
    # A driver has to be on a machine of the cluster: this makes the pod one, with room for no work.
    - name: ray
      {{- include "basin.container" $ | nindent 6 }}
      restartPolicy: Always
      command: [ray, start, --block, --num-cpus=0, --num-gpus=0, --object-store-memory=268435456, "--address={{ . }}", "--node-manager-port={{ include "basin.rayletPort" $ }}"]
      env:
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
      startupProbe:
        tcpSocket: {port: {{ include "basin.rayletPort" $ }}}
        periodSeconds: 2
        failureThreshold: 150
      livenessProbe:
        tcpSocket: {port: {{ include "basin.rayletPort" $ }}}
      resources:
        {{- toYaml $.Values.ray.resources | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
    {{- end }}
  {{- end }}
  containers:
    - name: basin
      {{- include "basin.container" . | nindent 6 }}
      args: [serve, --config, /etc/basin/config/config.yaml]
      env:
        {{- if not (dig "threads" 0 .Values.config) }}
        # torch would start a thread for every core of the node.
        - name: BASIN_THREADS
          valueFrom:
            resourceFieldRef: {containerName: basin, resource: limits.cpu}
        {{- end }}
        {{- if eq .Values.store.type "postgresql" }}
        {{- include "basin.storeEnv" (dict "root" . "name" "BASIN_BATCHES__STORE") | nindent 8 }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: grpc, containerPort: {{ include "basin.grpcPort" . }}}
        - {name: health, containerPort: {{ include "basin.healthPort" . }}}
        - {name: metrics, containerPort: {{ include "basin.metricsPort" . }}}
      {{- range $service, $timing := .Values.probes }}
      {{ $service }}Probe:
        grpc: {port: {{ include "basin.healthPort" $ }}, service: {{ $service }}}
        {{- toYaml $timing | nindent 8 }}
      {{- end }}
      {{- if .Values.preStopSeconds }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ .Values.preStopSeconds }}}
      {{- end }}
      resources:
        {{- include "basin.gpuResources" (dict "resources" .Values.resources "gpu" .Values.gpu) | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/basin/config, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        - {name: cache, mountPath: /cache}
        - {name: data, mountPath: /data}
        {{- if .Values.models.persistence.enabled }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
        {{- if .Values.tls.enabled }}
        - {name: tls, mountPath: /etc/basin/tls, readOnly: true}
        {{- end }}
        {{- if .Values.tls.clientCA.existingSecret }}
        - {name: client-ca, mountPath: /etc/basin/client-ca, readOnly: true}
        {{- end }}
        {{- if .Values.auth.tokens.existingSecret }}
        - {name: tokens, mountPath: /etc/basin/tokens, readOnly: true}
        {{- end }}
        {{- if include "basin.rayAddress" . }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "basin.fullname" . }}}
    - name: tmp
      emptyDir: {}
    - name: cache
      emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
    {{- with .Values.store }}
    {{- if or (eq .type "postgresql") (not .sqlite.persistence.enabled) }}
    - name: data
      emptyDir: {}
    {{- else if .sqlite.persistence.existingClaim }}
    - name: data
      persistentVolumeClaim: {claimName: {{ include "basin.dataClaim" $ }}}
    {{- end }}
    {{- end }}
    {{- if .Values.models.persistence.enabled }}
    - name: models
      persistentVolumeClaim: {claimName: {{ include "basin.modelsClaim" . }}}
    {{- end }}
    {{- /* Keys and tokens are for the server's group alone. */}}
    {{- if .Values.tls.enabled }}
    - name: tls
      secret: {secretName: {{ .Values.tls.existingSecret }}, defaultMode: 0440}
    {{- end }}
    {{- with .Values.tls.clientCA.existingSecret }}
    - name: client-ca
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
    {{- with .Values.auth.tokens.existingSecret }}
    - name: tokens
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
    {{- if include "basin.rayAddress" . }}
    - name: shm
      emptyDir: {medium: Memory}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
