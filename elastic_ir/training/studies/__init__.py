"""Studies: many trainings as jobs that are never done twice."""
