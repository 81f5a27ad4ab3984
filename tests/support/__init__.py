"""What tests share: places, servers, small trainings."""
