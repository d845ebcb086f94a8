"""Fill a data folder, once: read `folder.build_folder` first. Nothing here runs beside training code."""
