"""Features without training: wavelet scattering, frozen networks, and their whitening by public images."""
