"""A tf.data service with one worker: prints its address, and lives until its stdin closes."""

import sys

import tensorflow as tf

dispatcher = tf.data.experimental.service.DispatchServer()
address = dispatcher.target.split("://")[1]
worker = tf.data.experimental.service.WorkerServer(
    tf.data.experimental.service.WorkerConfig(dispatcher_address=address)
)
print(dispatcher.target, flush=True)
sys.stdin.read()
