"""The code that claims share: arms and rules, the runner, start models, figures and pages."""
