"""What one expansion costs on a device: catalogues of devices and models, floors, profiles."""
