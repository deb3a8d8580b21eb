"""The parts that claims share: arms and rules, the runner, models to start from, figures and pages."""
