# Compiler flags that every room shares: the target proteus_flags (private, never exported).
add_library(proteus_flags INTERFACE)
target_compile_features(proteus_flags INTERFACE cxx_std_20)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O3")
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")

find_program(PROTEUS_CCACHE ccache)
if(PROTEUS_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${PROTEUS_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${PROTEUS_CCACHE})
endif()

set(cxx "$<COMPILE_LANGUAGE:CXX>")
target_compile_options(proteus_flags INTERFACE
  "$<${cxx}:-Wall;-Wextra;-Wpedantic;-Wshadow;-march=${PROTEUS_ARCH};-fno-math-errno;-fno-trapping-math>")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 warns of overflows that cannot happen: inside fmt 9's constant evaluation, and in
  # "text" + std::to_string(n).
  target_compile_options(proteus_flags INTERFACE
    "$<${cxx}:-Wno-stringop-overflow;-Wno-restrict>")
endif()
if(PROTEUS_WERROR)
  target_compile_options(proteus_flags INTERFACE "$<${cxx}:-Werror>")
endif()

# On CPUs with AVX-512: whole 512-bit vectors, and the tuning that g++ 12 does well (its own for
# Zen 5 makes Eigen's product a third slower).
execute_process(COMMAND ${CMAKE_CXX_COMPILER} -march=${PROTEUS_ARCH} -dM -E -x c++ /dev/null
                OUTPUT_VARIABLE proteus_macros ERROR_QUIET)
if(proteus_macros MATCHES "__AVX512F__")
  target_compile_options(proteus_flags INTERFACE "$<${cxx}:-mprefer-vector-width=512>")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(proteus_flags INTERFACE "$<${cxx}:-mtune=skylake-avx512>")
  endif()
endif()

if(PROTEUS_SANITIZE)
  add_compile_options(-fsanitize=${PROTEUS_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${PROTEUS_SANITIZE})
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # clang warns where it leaves an `omp simd` loop scalar, as it does without optimisation.
  target_compile_options(proteus_flags INTERFACE "$<${cxx}:-Wno-pass-failed>")
endif()

# `#pragma omp simd` needs the flag in every room; OpenMP's runtime is linked by tensor alone.
target_compile_options(proteus_flags INTERFACE "$<${cxx}:-fopenmp-simd>")

# proteus_room(name DEPENDS room… SOURCES file…): the static library proteus_<name>. proteus::<name>
# is what programs outside of the rooms link, with headers by the names that they have when installed:
# <proteus/nn/transformer.h>.
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/include)
file(CREATE_LINK ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/include/proteus SYMBOLIC)
function(proteus_room name)
  cmake_parse_arguments(ROOM "" "" "DEPENDS;SOURCES" ${ARGN})
  add_library(proteus_${name} STATIC ${ROOM_SOURCES})
  set_target_properties(proteus_${name} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(proteus_${name} PUBLIC cxx_std_20)
  target_include_directories(proteus_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
    $<INSTALL_INTERFACE:include>
    $<INSTALL_INTERFACE:include/proteus>)
  target_link_libraries(proteus_${name} PRIVATE $<BUILD_INTERFACE:proteus_flags>)
  foreach(dependency IN LISTS ROOM_DEPENDS)
    target_link_libraries(proteus_${name} PUBLIC proteus_${dependency})
  endforeach()
  add_library(proteus_${name}_outside INTERFACE)
  target_include_directories(proteus_${name}_outside INTERFACE ${PROJECT_BINARY_DIR}/include)
  target_link_libraries(proteus_${name}_outside INTERFACE proteus_${name})
  add_library(proteus::${name} ALIAS proteus_${name}_outside)
endfunction()
