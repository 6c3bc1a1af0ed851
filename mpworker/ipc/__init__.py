"""What passes between processes: rings, bells, claims, the records in them and the sockets that hand them over."""
