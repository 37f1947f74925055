"""KEDA's wire contract, generated from proto/status/keda."""
