"""What a step did, counted on the devices and brought to the first process."""
