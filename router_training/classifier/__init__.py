"""Text -> category probabilities, fitted: features, classifiers, calibration, gate, corrections."""
