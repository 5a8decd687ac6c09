"""Pure tensor functions: no models, no files. Float64 inside, whatever comes in."""
