"""The plain manifests beside the chart."""
