# Installation: headers under include/proteus/<room>/, static libraries, the program, and a package
# that find_package(proteus) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(proteus_rooms tensor autograd nn optim aspa train)
if(TARGET proteus_cuda)
  list(APPEND proteus_rooms cuda)
endif()
foreach(room IN LISTS proteus_rooms)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${room}/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/proteus/${room}
          FILES_MATCHING PATTERN "*.h")
  install(TARGETS proteus_${room} EXPORT proteusTargets
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
endforeach()
install(TARGETS proteus RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(EXPORT proteusTargets NAMESPACE proteus::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/proteus)
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/proteusConfig.cmake.in ${PROJECT_BINARY_DIR}/proteusConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/proteus)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/proteusConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/proteusConfig.cmake
              ${PROJECT_BINARY_DIR}/proteusConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindPCRE2.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindxxHash.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/proteus)
