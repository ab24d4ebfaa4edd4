"""Run the models over the token stream and write or serve their residuals."""
