"""Commands about hosts: `harness cluster ...`."""
