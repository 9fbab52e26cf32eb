"""Public weights in and out: files, names and shapes of other tools' models, and the workdirs that they become."""
