#!/usr/bin/python3
"""A client of the Container Runtime Interface, as kubelet is one.

    cri run|remove NAME...    pods, all at once
    cri status                whether the network is ready, and why not
"""
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import api_pb2 as api

channel = grpc.insecure_channel("unix:///run/containerd/containerd.sock")


def call(method, **fields):
    send = channel.unary_unary(
        f"/runtime.v1.RuntimeService/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(api, f"{method}Response").FromString,
    )
    request = getattr(api, f"{method}Request")(**fields)
    return send(request, timeout=55, wait_for_ready=True)


def run(name):
    pod = {"name": name, "namespace": "default", "uid": name}
    config = {"metadata": pod, "log_directory": "/run/pods", "linux": {}}
    call("RunPodSandbox", config=config)


def remove(name):
    for pod in call("ListPodSandbox").items:
        if pod.metadata.name == name:
            call("StopPodSandbox", pod_sandbox_id=pod.id)
            call("RemovePodSandbox", pod_sandbox_id=pod.id)


def status():
    for condition in call("Status").status.conditions:
        if condition.type == "NetworkReady":
            print(condition.status, condition.message)


command, *names = sys.argv[1:]
if command == "status":
    status()
else:
    with ThreadPoolExecutor(max_workers=10) as pool:
        list(pool.map({"run": run, "remove": remove}[command], names))
