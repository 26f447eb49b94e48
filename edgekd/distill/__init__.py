"""Teacher and recipe in, Student out: plan, masks, calibration, quantizers, distillation."""
