"""What Prometheus and Grafana are given to watch a cluster by."""
