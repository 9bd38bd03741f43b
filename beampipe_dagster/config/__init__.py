"""What a survey, a deployment profile and a process are configured with, and how it is checked."""
