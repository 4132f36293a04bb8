"""Features that nobody trains: wavelet scattering, frozen networks, and their whitening by public images."""
