"""Pictures of a run. `report` writes one HTML file that needs neither network nor server."""
