"""The shapes zoo: text-to-image models that the project itself trains, and the CLIP that scores them."""
