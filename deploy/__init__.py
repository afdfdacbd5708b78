"""Ways to run the services: the embedded stack of one machine is `deploy.local`."""
