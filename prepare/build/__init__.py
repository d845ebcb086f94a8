"""Fill a data folder, once. Read `folder.build_folder` first. Training code never imports this package."""
